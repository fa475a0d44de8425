"""The ``inferbus`` command. A subcommand's module is imported when it is asked for, so the quick ones stay quick."""

import importlib

import click

# Name -> module and attribute, in the order in which help shows them.
_COMMANDS = {
    "up": "inferbus_cli.commands.up:up",
    "demo": "inferbus_cli.commands.demo:demo",
    "chat": "inferbus_cli.commands.chat:chat",
    "batch": "inferbus_cli.commands.batch:batch",
    "models": "inferbus_cli.commands.models:models",
    "model": "inferbus_cli.commands.model:model",
    "deploy": "inferbus_cli.commands.rollouts:deploy",
    "rollouts": "inferbus_cli.commands.rollouts:rollouts",
    "deployments": "inferbus_cli.commands.deployments:deployments",
    "tenants": "inferbus_cli.commands.tenants:tenants",
    "projects": "inferbus_cli.commands.projects:projects",
    "service-accounts": "inferbus_cli.commands.service_accounts:service_accounts",
    "keys": "inferbus_cli.commands.keys:keys",
    "usage": "inferbus_cli.commands.usage:usage",
    "cost": "inferbus_cli.commands.cost:cost",
    "margin": "inferbus_cli.commands.cost:margin",
    "prices": "inferbus_cli.commands.prices:prices",
    "budgets": "inferbus_cli.commands.budgets:budgets",
    "credits": "inferbus_cli.commands.budgets:credits",
    "rerate": "inferbus_cli.commands.rerate:rerate",
    "invoice": "inferbus_cli.commands.invoice:invoice",
    "requests": "inferbus_cli.commands.requests:requests",
    "request": "inferbus_cli.commands.requests:request",
    "top": "inferbus_cli.commands.top:top",
    "fleet": "inferbus_cli.commands.fleet:fleet",
    "drain": "inferbus_cli.commands.drain:drain",
    "analytics": "inferbus_cli.commands.analytics:analytics",
    "sql": "inferbus_cli.commands.sql:sql",
    "audit": "inferbus_cli.commands.audit:audit",
    "replay": "inferbus_cli.commands.replay:replay",
    "simulate": "inferbus_cli.commands.simulate:simulate",
    "size": "inferbus_cli.commands.size:size",
    "erase": "inferbus_cli.commands.erase:erase",
    "captures": "inferbus_cli.commands.captures:captures",
    "audit-log": "inferbus_cli.commands.audit_log:audit_log",
}


class Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, _, name = _COMMANDS[cmd_name].partition(":")
        command: click.Command = getattr(importlib.import_module(module), name)
        return command


@click.command(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """InferBus: run it, talk to it, and see what it did.

    The commands find the stack of this machine by --home (or INFERBUS_HOME, default .inferbus), and a remote one by
    --url and --key (or INFERBUS_URL and INFERBUS_KEY).
    """


def main() -> None:
    cli()


if __name__ == "__main__":
    main()
