"""The objectives that training minimises, one module for each."""
