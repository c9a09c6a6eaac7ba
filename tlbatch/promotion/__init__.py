"""Champion and challenger: the registry, the promotion rule and nights."""
