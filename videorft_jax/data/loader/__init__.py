"""The loader: measures records, plans a run, decodes ahead of the device, and resumes."""
