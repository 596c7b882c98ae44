"""The local stack: an embedded AWS, a simulated WeChat, both functions and their schedules on loopback."""
