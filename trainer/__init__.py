"""How any method is trained."""
