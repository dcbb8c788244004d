"""Prediction: a trained model, the files to predict, and the pictures and results made of them."""
