"""The destinations of finished uploads."""
