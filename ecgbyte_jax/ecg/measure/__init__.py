"""What can be measured in an ECG: beats, the median beat, its waves, amplitudes and disturbances."""
