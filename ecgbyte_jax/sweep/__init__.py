"""Several trainings and evaluations as one command."""
