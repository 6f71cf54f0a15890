"""Chips as files of ten lines; `mapping` lays a model out on one."""
