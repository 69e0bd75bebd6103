"""The commands of ``alpose-monitor``, a file each."""
