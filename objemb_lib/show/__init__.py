"""Plots, widgets and the app."""
