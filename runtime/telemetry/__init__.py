"""What a monitor shows of itself: its stats, the Prometheus export, the live page, and the HTTP server of both."""
