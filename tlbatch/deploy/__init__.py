"""Export of trained models, their verification, and prediction with them."""
