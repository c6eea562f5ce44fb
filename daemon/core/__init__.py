"""Engines, scheduler, hub and streams: what all edges share."""
