"""STOMP: what is published while a durable subscriber is away waits for it, whole and in order."""

from __future__ import annotations

from gridstead.cli.broker import Broker, BrokerError
from gridstead.config import stomp_client
from gridstead.smoke.probe import Probe, SmokeError

MESSAGES = 200


def check(probe: Probe) -> str:
    """Run the check; returns what was seen, raises SmokeError."""
    settings = stomp_client(probe.config)
    topic, client, subscription = probe.name, f"gridstead-{probe.name}", f"durable-{probe.name}"
    wanted = [f"message {number}".encode() for number in range(MESSAGES)]
    try:
        with Broker(settings, client_id=client) as broker:
            broker.subscribe(topic, durable_name=subscription)
        with Broker(settings) as broker:
            broker.publish(topic, wanted)
        with Broker(settings, client_id=client) as broker:
            broker.subscribe(topic, durable_name=subscription)
            got: list[bytes] = []
            while len(got) < MESSAGES:
                message = broker.receive(min(10.0, probe.left()))
                if message is None:
                    raise SmokeError(f"only {len(got)} of {MESSAGES} messages had waited for the subscriber")
                got.append(message.body)
            probe.expect(broker.receive(0.5), None, "a message after the last")
            broker.unsubscribe(subscription, durable=True)
    except BrokerError as error:
        raise SmokeError(f"the broker: {error}") from error
    probe.expect(got, wanted, "messages received")
    return f"{MESSAGES} messages published while disconnected, all received after it, in order"
