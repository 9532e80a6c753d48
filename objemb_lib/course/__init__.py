"""What runs the course: notebooks and their numbers, profiles, the environment check, training."""
