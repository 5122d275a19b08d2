//! What data nodes talk to: their sessions, proposals of reservations, Unit Attentions.
