"""`cluster`: a local stack, jobs on Ray, the duplicate audit and the demonstration."""

import re
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cluster.audit.commands import audit, audit_review, audit_within, fingerprint
from cluster.submission.checks import COMMANDS
from pipeline.base.console import echo, examples, run
from pipeline.base.errors import ConfigError, ServiceError
from pipeline.base.text import printable

if TYPE_CHECKING:
    from cluster.stack.services import Stack


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="bit-pretrain")
def cli() -> None:
    """Run jobs on a Ray cluster and audit datasets for near-duplicates. Add --debug for tracebacks."""


def main() -> None:
    """Entry point of the `cluster` command."""
    run(cli)


for command in (audit, audit_within, audit_review, fingerprint):
    cli.add_command(command)


# Names of variables that hold secrets; those that name files of them do not.
_SECRET = re.compile(
    r"(SECRET|PASSWORD|PASSWD|TOKEN|CREDENTIAL|PRIVATE_KEY|API_KEY)[A-Z0-9_]*(?<!_PATH)(?<!_FILE)$", re.I
)


_address = click.option("--address", help="Ray's job API, such as http://HEAD:8265; RAY_API_SERVER_ADDRESS by default.")


@cli.command(epilog=examples("cluster up stack", "cluster up stack --node-cpus 1 --node-cpus 1   # two nodes"))
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--node-cpus",
    multiple=True,
    type=click.IntRange(1),
    default=(2,),
    show_default=True,
    help="CPUs of a Ray node; repeat it for each node.",
)
@click.option("--bucket", default="bit", show_default=True, help="Bucket to create.")
@click.option("--s3-port", default=0, help="Port of the S3 server; any free one by default.")
@click.option("--dashboard-port", default=0, help="Port of Ray's dashboard and job API; any free one by default.")
def up(folder: Path, node_cpus: tuple[int, ...], bucket: str, s3_port: int, dashboard_port: int) -> None:
    """Start an S3 server and Ray on this machine, on the loopback interface; state, logs and objects in FOLDER.

    Where one runs already, its variables are printed again.
    """
    from cluster.stack.processes import end_by_signals  # noqa: PLC0415
    from cluster.stack.services import STATE_NAME, read_stack, start_stack, stop_leftover  # noqa: PLC0415

    if (folder / STATE_NAME).exists() and (stack := read_stack(folder)).is_running:
        echo(f"# a stack runs in {folder} already, with the options it was started with", err=True)
    else:
        end_by_signals()
        stop_leftover(folder)
        stack = start_stack(
            folder, cpus_per_node=node_cpus, bucket=bucket, s3_port=s3_port, dashboard_port=dashboard_port
        )
        echo(f"# the bucket is s3://{bucket}; stop with: cluster down {folder}", err=True)
    _print_environment(stack)


@cli.command("env", epilog=examples('eval "$(cluster env stack)"   # in a second terminal'))
@click.argument("folder", type=click.Path(path_type=Path))
def environment(folder: Path) -> None:
    """Print the variables that reach the stack of FOLDER again."""
    from cluster.stack.services import read_stack  # noqa: PLC0415

    stack = read_stack(folder)
    if not stack.is_running:
        raise ServiceError(f"the stack of {folder} has ended; start it again with `cluster up {folder}`")
    _print_environment(stack)


def _print_environment(stack: "Stack") -> None:
    echo(f"# dashboard {stack.dashboard}; the token it asks for: cat {shlex.quote(stack.token)}", err=True)
    for name, value in stack.environment.items():
        echo(f"export {name}={shlex.quote(value)}")


@cli.command(epilog=examples("cluster down stack", 'eval "$(cluster down stack)"   # forgets its variables, too'))
@click.argument("folder", type=click.Path(path_type=Path))
def down(folder: Path) -> None:
    """Stop what `cluster up` started in FOLDER, and print what to unset; objects and logs stay."""
    from cluster.stack.services import read_stack, stop_stack  # noqa: PLC0415

    stack = read_stack(folder)
    stop_stack(stack)
    echo(f"# stopped the stack of {folder}; in a shell that has its variables, run", err=True)
    for prefix in ("AWS_", "RAY_"):
        echo(f"unset {' '.join(name for name in stack.environment if name.startswith(prefix))}")


@cli.command(
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    epilog=examples(
        "cluster submit pretrain s3://bucket/i21k s3://bucket/runs/m --recipe bit-m --workers 16 --gpu",
        "cluster submit --no-wait --env OMP_NUM_THREADS=4 evaluate s3://b/run s3://b/val s3://b/eval",
        "cluster submit sh -c 'nvidia-smi; df -h'                     # anything else, as it is",
    ),
)
@_address
@click.option("--env", "settings", multiple=True, metavar="NAME=VALUE", help="Environment of the job.")
@click.option("--job", help="Id of the job; a random one by default.")
@click.option("--wait/--no-wait", default=True, show_default=True, help="Copy the output until the job ends.")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def submit(
    address: str | None, settings: tuple[str, ...], job: str | None, wait: bool, command: tuple[str, ...]
) -> None:
    """Run COMMAND as a job on the cluster; exit 1 if it fails.

    `pretrain`, `finetune` and `evaluate` are the trainer's: configuration and cluster are checked first, the code of
    this machine goes with the job, and if its driver is killed the job starts it again.
    """
    from cluster.stack import jobs  # noqa: PLC0415
    from cluster.stack.processes import end_by_signals  # noqa: PLC0415

    environment = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals:
            raise ConfigError(f"--env {setting!r}: write NAME=VALUE")
        if _SECRET.search(name):
            raise ConfigError(
                f"--env {name}: what a job is given so can be read in its metadata and in Ray's logs; give secrets to "
                f"the nodes, in their environment, a file or a role"
            )
        environment[name] = value
    end_by_signals()
    client = jobs.connect(address)
    if command[0] in COMMANDS:
        from cluster.submission.submit import submit_run  # noqa: PLC0415

        started, wheel = submit_run(client, command, environment, job)
        echo(f"job {started}, with {wheel.name} (sha256 {wheel.sha256[:12]})", err=True)
    else:
        started = jobs.submit(client, command, environment, job)
        echo(f"job {started}", err=True)
    if wait:
        ended = jobs.follow(client, started)
        echo(f"job {started} {ended}", err=True)
        sys.exit(0 if ended == "SUCCEEDED" else 1)
    echo(started)


@cli.command(epilog=examples("cluster status", "cluster status raysubmit_abc"))
@_address
@click.argument("job", required=False)
def status(address: str | None, job: str | None) -> None:
    """Print the status of JOB, or of all jobs; of training runs also step, rate, time left and the last error."""
    from cluster.stack import jobs  # noqa: PLC0415
    from cluster.submission.runs import run_lines  # noqa: PLC0415

    client = jobs.connect(address)
    if job:
        echo(jobs.status(client, job))
        return
    rows = jobs.all_jobs(client)
    lines = run_lines(rows)
    for row in rows:
        echo(printable(f"{row['job']}  {row['status']:<9}  {row['command']}"))
        if row["job"] in lines:
            echo(printable(f"    {lines[row['job']]}"))


@cli.command(epilog=examples("cluster logs raysubmit_abc", "cluster logs raysubmit_abc --follow"))
@_address
@click.argument("job")
@click.option("--follow", is_flag=True, help="Continue until the job ends.")
def logs(address: str | None, job: str, follow: bool) -> None:
    """Print the output of JOB."""
    from cluster.stack import jobs  # noqa: PLC0415

    client = jobs.connect(address)
    jobs.status(client, job)
    if follow:
        jobs.follow(client, job)
    else:
        echo(jobs.logs(client, job), nl=False)


@cli.command(epilog=examples("cluster stop raysubmit_abc", "cluster stop raysubmit_abc --no-wait"))
@_address
@click.option("--wait/--no-wait", default=True, show_default=True, help="Until the job has ended, and copy its output.")
@click.argument("job")
def stop(address: str | None, wait: bool, job: str) -> None:
    """Stop JOB; training saves its state, and goes on there when the same command is submitted again."""
    from cluster.stack import jobs  # noqa: PLC0415

    client = jobs.connect(address)
    echo(f"asking {job} to stop; a run of the trainer saves its state first", err=True)
    ended = jobs.stop(client, job, wait=wait)
    if not wait:
        echo(f"job {job} was asked to stop", err=True)
        return
    echo(f"job {job} {ended}", err=True)
    if saved := jobs.last_words(client, job):
        echo(saved)


@cli.command(epilog=examples("cluster demo", "cluster demo --data photos   # CLASS/NAME.jpg or SPLIT/CLASS/NAME.jpg"))
@click.option("--data", type=click.Path(path_type=Path), help="Your own class folders instead of digits.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("bit-demo"),
    show_default=True,
    help="Folder of all output.",
)
@click.option("--short", is_flag=True, help="A few steps of each stage, to see that everything works.")
@click.option("--fresh", is_flag=True, help="Start over if there is an earlier run.")
def demo(data: Path | None, out: Path, short: bool, fresh: bool) -> None:
    """Shard, pretrain, transfer, audit and report on this machine, in a few minutes on two cores."""
    from cluster.demo.run import run_demo  # noqa: PLC0415

    run_demo(out, data, short=short, fresh=fresh)
