"""Changes of structure: fewer units, layers, ranks and distinct numbers."""
