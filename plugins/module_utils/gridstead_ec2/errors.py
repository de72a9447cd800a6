"""What an error of the API means for who runs the playbook, and the next command."""

from __future__ import annotations

AGAIN = "then run the same command again: it goes on where it stopped"
HINTS = {
    ("InsufficientInstanceCapacity", "InsufficientHostCapacity", "SpotMaxPriceTooLow", "UnfulfillableCapacity"): (
        f"AWS has no such instance free in this zone now. Wait, or choose another type, zone or spot share in the cluster file, {AGAIN}"
    ),
    ("ExpiredToken", "RequestExpired", "ExpiredTokenException", "InvalidClientTokenId", "AuthFailure", "UnrecognizedClientException"): (
        f"The credentials are not valid, or no longer. Renew them (aws sts get-caller-identity must answer), {AGAIN}"
    ),
    ("Unable to locate credentials", "NoCredentials", "could not be found", "Partial credentials"): (
        f"No credentials were found. Set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, {AGAIN}"
    ),
    ("RequestLimitExceeded", "Throttling", "TooManyRequests", "SlowDown", "ServiceUnavailable"): (
        f"AWS asks for fewer calls, and did so after several tries. Wait some minutes, {AGAIN}"
    ),
    ("VcpuLimitExceeded", "InstanceLimitExceeded", "MaxSpotInstanceCountExceeded", "LimitExceeded", "AddressLimitExceeded"): (
        f"A quota of the account is used up. Ask for more in Service Quotas, or make the cluster smaller, {AGAIN}"
    ),
    ("BucketAlreadyExists", "BucketAlreadyOwnedByYou", "EntityAlreadyExists", "InvalidKeyPair.Duplicate", "AlreadyExists"): (
        f"The name is taken by something that is not this cluster's. Choose another (name, or bucket.name) in the cluster file, {AGAIN}"
    ),
    ("UnauthorizedOperation", "AccessDenied", "not authorized"): (
        f"These credentials may not do this. docs/operations/ec2.md lists the permissions that are needed, {AGAIN}"
    ),
    ("Could not connect", "EndpointConnectionError", "Connect timeout", "Read timeout"): (
        f"AWS was not reached. Check the network, and the region in the cluster file, {AGAIN}"
    ),
}


def hint(message: str) -> str:
    """Return what to do about a message of the API."""
    for marks, text in HINTS.items():
        if any(mark in message for mark in marks):
            return text
    return f"See the message above, {AGAIN}"
