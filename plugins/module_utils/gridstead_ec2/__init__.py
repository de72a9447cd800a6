"""What the EC2 playbooks compute in Python: the cluster file, what it asks of an account, what is there, the difference and its price."""
