//! Login status codes (RFC 7143 11.13.5).

/// Status class and detail of a redirection: the target has moved temporarily.
pub(crate) const TARGET_MOVED_TEMPORARILY: u16 = 0x0101;

/// Why a login is refused. Success and redirection are not refusals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoginStatus {
    /// 0200h: the initiator broke the rules of login.
    InitiatorError,
    /// 0201h: wrong credentials, or none.
    AuthenticationFailure,
    /// 0202h: this initiator may not use this target.
    AuthorizationFailure,
    /// 0203h: no such target here.
    NotFound,
    /// 0204h: the target was removed.
    TargetRemoved,
    /// 0205h: no protocol version in common.
    UnsupportedVersion,
    /// 0206h: the session has all the connections that it may have.
    TooManyConnections,
    /// 0207h: a key that must be there is not.
    MissingParameter,
    /// 0208h: the target does not support sessions across this portal.
    CannotIncludeInSession,
    /// 0209h: the session type is not offered.
    SessionTypeNotSupported,
    /// 020Ah: no session with that TSIH.
    SessionDoesNotExist,
    /// 020Bh: not allowed during login.
    InvalidDuringLogin,
    /// 0300h: our fault.
    TargetError,
    /// 0301h: not serving now.
    ServiceUnavailable,
    /// 0302h: no room for another session.
    OutOfResources,
}

impl LoginStatus {
    /// Status class and detail as one number.
    #[must_use]
    pub fn code(self) -> u16 {
        match self {
            Self::InitiatorError => 0x0200,
            Self::AuthenticationFailure => 0x0201,
            Self::AuthorizationFailure => 0x0202,
            Self::NotFound => 0x0203,
            Self::TargetRemoved => 0x0204,
            Self::UnsupportedVersion => 0x0205,
            Self::TooManyConnections => 0x0206,
            Self::MissingParameter => 0x0207,
            Self::CannotIncludeInSession => 0x0208,
            Self::SessionTypeNotSupported => 0x0209,
            Self::SessionDoesNotExist => 0x020a,
            Self::InvalidDuringLogin => 0x020b,
            Self::TargetError => 0x0300,
            Self::ServiceUnavailable => 0x0301,
            Self::OutOfResources => 0x0302,
        }
    }
}
