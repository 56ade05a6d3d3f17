"""Networks and layers that methods share; never a method."""
