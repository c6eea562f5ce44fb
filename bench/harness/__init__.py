"""What the benchmarks that judge the service as a whole share: `bench.day`, `bench.soak`, `bench.faults`.

Owns a real daemon and what is around it, clients of every protocol, what they were told, and whether that was
delivered. Knows nothing of what any of them does with it.

    daemon.py, scripted.py, usage.py    the process, its scripted engine, and what it uses
    mqtt_subscriber.py, home.py         a broker, and a subscriber there; with a daemon beside them
    clients.py                          websocket streams, subscribers of /v1/events, Wyoming
    recordings.py                       what is said
    delivery.py                         was each final delivered once and in order?
    report.py                           the command, its report and its exit code
"""
