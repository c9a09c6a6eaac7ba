"""A trained model that leaves its run: export, verification, prediction."""
