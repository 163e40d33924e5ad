"""Measurements that take longer than a test: speed, steadiness, hostile input. Each is one command."""
