"""What only NotifyFunction loads: messages for people, and the group robots they go to."""
