"""Counting what a model does, from execution: events, operations, energy, traces and pictures of spikes."""
