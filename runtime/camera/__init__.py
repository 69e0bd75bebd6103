"""Cameras and recordings for ``alpose-monitor run``: frames with their times, the loop, and the annotated video.

OpenCV is imported in :mod:`~alpose.runtime.camera.capture` alone, where it is first needed.
"""
