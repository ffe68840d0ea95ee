"""The host: discovers adapters, patches their targets in place, and gives them back."""
