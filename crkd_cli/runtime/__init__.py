"""What every run needs: device, processes, checkpoints, the run folder, building a method."""
