"""Drift of the images and of the champion's predictions from night to night."""
