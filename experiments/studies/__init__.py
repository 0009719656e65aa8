"""The paper, calibration, ablations, gates and validation, behind the commands above."""
