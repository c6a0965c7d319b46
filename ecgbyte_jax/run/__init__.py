"""A run: its folder, its lock, the markers of finished stages, its processes, and what people see in the terminal."""
