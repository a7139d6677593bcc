"""Services on this machine and jobs on a cluster: an S3 server and Ray nodes, started and stopped; Ray's job API.

In: a folder and CPUs per node, or the address of a cluster and a command line. Out: a `Stack` with the environment that
reaches it; ids, status and output of jobs. Uses `pipeline.base` alone.
"""
