"""HTTP: pages for people, the REST API for integrations. Flask; asks services, writes no SQL."""
