"""What makes an answer trustworthy: the gate, calibration, conformal sets; fitted here, applied by the server."""
