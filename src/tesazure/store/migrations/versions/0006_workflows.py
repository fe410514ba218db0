"""Workflows, counted as their tasks change, and what attempts cost."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"

NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
STATES = (
    "UNKNOWN",
    "QUEUED",
    "INITIALIZING",
    "RUNNING",
    "PAUSED",
    "COMPLETE",
    "EXECUTOR_ERROR",
    "SYSTEM_ERROR",
    "CANCELED",
    "CANCELING",
    "PREEMPTED",
)

tasks = sa.table(
    "tasks",
    *map(sa.column, ("seq", "state", "owner", "tenant", "created", "ended", "workflow")),
)
tags = sa.table("tags", *map(sa.column, ("key", "value", "seq")))


def upgrade() -> None:
    """Tasks that carry a workflow's id are counted from now on, as if always."""
    op.add_column("tasks", sa.Column("workflow", sa.BigInteger))
    op.add_column("attempts", sa.Column("cost", sa.BigInteger))
    workflows = op.create_table(
        "workflows",
        sa.Column("seq", NUMBER, primary_key=True, autoincrement=False),
        sa.Column("id", TEXT, nullable=False),
        sa.Column("name", TEXT, nullable=False),
        sa.Column("submitter", TEXT, nullable=False),
        sa.Column("owner", TEXT),
        sa.Column("tenant", TEXT),
        sa.Column("first_activity", sa.Double, nullable=False),
        sa.Column("last_activity", sa.Double, nullable=False),
        sa.Column("cost", sa.BigInteger),
        *(sa.Column(state.lower(), sa.BigInteger, nullable=False) for state in STATES),
    )
    op.create_index("ix_workflows_id", "workflows", ["id", "seq"])
    _partial("ix_workflows_owner", ["owner", "seq"], "owner IS NOT NULL")
    _partial("ix_workflows_tenant", ["tenant", "seq"], "tenant IS NOT NULL")
    _count(workflows)


def _count(workflows: sa.Table) -> None:
    # Tables without statistics, as of a database that was just restored, are joined row by row.
    _analyze("tasks", "tags")
    member = tags.alias("member")
    of_workflow = (member.c.key == "ms-submitter-workflow-id", *_whole(member))
    counted = (
        sa.select(
            sa.func.min(tasks.c.seq).label("seq"),
            member.c.value.label("id"),
            tasks.c.owner,
            tasks.c.tenant,
            sa.func.min(tasks.c.created).label("first_activity"),
            sa.func.max(sa.func.coalesce(tasks.c.ended, tasks.c.created)).label("last_activity"),
            *(
                sa.func.sum(sa.case((tasks.c.state == state, 1), else_=0)).label(state.lower())
                for state in STATES
            ),
        )
        .join_from(member, tasks, tasks.c.seq == member.c.seq)
        .where(*of_workflow)
        .group_by(member.c.value, tasks.c.owner, tasks.c.tenant)
        .subquery()
    )
    named = sa.select(
        *counted.columns,
        _first(counted, "ms-submitter-workflow-name").label("name"),
        _first(counted, "ms-submitter-name").label("submitter"),
    )
    op.execute(workflows.insert().from_select([*named.selected_columns.keys()], named))
    _analyze("workflows")
    its = (
        sa.select(workflows.c.seq)
        .join_from(workflows, member, member.c.value == workflows.c.id)
        .where(
            *of_workflow,
            member.c.seq == tasks.c.seq,
            workflows.c.owner.is_not_distinct_from(tasks.c.owner),
            workflows.c.tenant.is_not_distinct_from(tasks.c.tenant),
        )
    )
    op.execute(
        tasks.update()
        .values(workflow=its.scalar_subquery())
        .where(tasks.c.seq.in_(sa.select(member.c.seq).where(*of_workflow)))
    )


def _whole(tag: sa.FromClause) -> tuple[sa.ColumnElement[bool], ...]:
    """It has a value, and not only the digest of one above 512 bytes."""
    return tag.c.value != "", ~tag.c.value.like("sha256:%")


def _first(counted: sa.Subquery, key: str) -> sa.ColumnElement[str]:
    """What the first task of a workflow has in a tag."""
    tag = tags.alias()
    its = sa.select(tag.c.value).where(tag.c.key == key, tag.c.seq == counted.c.seq, *_whole(tag))
    return sa.func.coalesce(its.scalar_subquery(), "")


def _analyze(*tables: str) -> None:
    if op.get_bind().dialect.name == "postgresql":
        for table in tables:
            op.execute(f"ANALYZE {table}")


def _partial(name: str, columns: list[str], where: str) -> None:
    condition = sa.text(where)
    op.create_index(name, "workflows", columns, sqlite_where=condition, postgresql_where=condition)
