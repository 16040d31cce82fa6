"""The transfer agent: a durable queue of copies between storage elements, in the name of users."""
