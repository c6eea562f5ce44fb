"""The service around the library: ports, MQTT, microphones, and the commands that people type."""
