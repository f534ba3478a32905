"""What both stages share: setting a run up, the optimizer's step, restoring and exporting."""
