"""Networks and layers that methods share; none of these files is a method."""
