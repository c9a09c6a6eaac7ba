"""Champion and challenger: the registry, the promotion rule and the nightly runs."""
