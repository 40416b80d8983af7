"""Values only; ships in the wheel as `trainer.conf`."""
