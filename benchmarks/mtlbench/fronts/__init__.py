"""`mtl bench run fronts`: explorers against the sweep of a weighted sum, at equal total cost."""
