"""From records and video files to batches: NumPy, PyAV and grain; never touches a device."""
