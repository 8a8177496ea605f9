//! How a VM's state changes: from a state that it is in, by an owner that nobody has followed.

use shared::api::vm::VmState;
use shared::id::{ResourceId, VmId};
use shared::time::Timestamp;
use shared::{Code, Error as Fault};

use super::{Result, Tx, VmRow, query, require, row_from};
use crate::db::event;

/// Moves a VM on from any of `from`, the likeliest first, to `to`; answers it as it was. `invalid_state` when
/// it is in another state. Being in `to` already is a success, so a step may record twice.
pub async fn change(
    tx: &mut Tx,
    id: VmId,
    from: &[VmState],
    to: VmState,
    generation: u64,
    now: Timestamp,
) -> Result<VmRow> {
    let change = Change { to, generation, now };
    // An unknown state has rules of its own.
    if let Some(likely) = from.first().copied().filter(|state| *state != VmState::Unknown && state.can_become(to))
        && let Some(before) = change.write(tx, id, likely, None).await?
    {
        return Ok(before);
    }
    let before = require(tx.conn(), id).await?;
    let state = before.vm.state;
    if state == to {
        return Ok(before);
    }
    if !from.contains(&state) || !state.can_become(to) {
        let text = format!("vm {} is {state}: this is possible only when it is {}", before.vm.name, list(from));
        return Err(Fault::new(Code::InvalidState, text).into());
    }
    if state == VmState::Unknown
        && to.is_transitional()
        && let Some(target) = before.moving_to
    {
        let text = format!(
            "vm {} was moving to host {target} when a host went away: it is not known yet on which of them it runs",
            before.vm.name
        );
        return Err(Fault::new(Code::InvalidState, text).into());
    }
    let changed = change.write(tx, id, state, Some(before.version)).await?;
    changed.ok_or_else(|| {
        Fault::new(Code::StaleGeneration, format!("vm {} was changed by a newer owner", before.vm.name)).into()
    })
}

/// What a VM becomes, by whom and when.
struct Change {
    to: VmState,
    generation: u64,
    now: Timestamp,
}

impl Change {
    /// Moves a VM on from exactly this state and version, and answers it as it was before; `None` when it is in
    /// another one, or a newer owner has it.
    async fn write(&self, tx: &mut Tx, id: VmId, from: VmState, version: Option<i64>) -> Result<Option<VmRow>> {
        let Self { to, generation, now } = *self;
        let row = query(
            "UPDATE vm SET state = $4, state_since = $5, generation = $6, version = version + 1, start_due = 0,
                 last_known_state = CASE WHEN $4 = 'unknown' THEN state END
             WHERE id = $1 AND state = $2 AND version = COALESCE($3, version) AND generation <= $6
             RETURNING *",
        )
        .bind(id.to_string())
        .bind(from.as_str())
        .bind(version)
        .bind(to.as_str())
        .bind(now.ms())
        .bind(generation as i64)
        .fetch_optional(tx.conn())
        .await?;
        let Some(row) = row else { return Ok(None) };
        let mut before = row_from(&row)?;
        (before.vm.state, before.version) = (from, before.version - 1);
        let content = serde_json::json!({ "from": from, "to": to });
        let event = event::NewEvent {
            path: "/vm/state/changed",
            resource_kind: "vm",
            resource_id: id.uuid(),
            account_id: Some(before.vm.account_id),
            content: &content,
            at: now,
        };
        event::append(tx, &event)?;
        Ok(Some(before))
    }
}

fn list(states: &[VmState]) -> String {
    states.iter().map(|state| state.as_str()).collect::<Vec<_>>().join(" or ")
}
