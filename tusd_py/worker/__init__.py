"""What happens behind the scenes: moving uploads to the store, removing them, cleaning up."""
