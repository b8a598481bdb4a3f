//! What a device, a vCPU or the virtual machine must offer so that its state can travel: one trait to save and restore, the versions of
//! what travels, and the reason why a state is refused.

use keelson_vmm_control::StateSet;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// What can be saved and restored. Saving has no default: a device without state says so with a state of no fields.
///
/// What belongs to the host (descriptors, interrupt lines) never travels: it is handed to [`Saved::restore`] as `Host`.
pub trait Saved: Sized {
    /// The name of the section that holds the state: at most 16 bytes of lower-case letters, digits and hyphens.
    const KIND: &'static str;
    /// What travels.
    type State: Versioned;
    /// What the host gives the device anew.
    type Host;

    /// The state as it is now. The device is quiet (its machine is paused).
    fn save(&self) -> Self::State;
    /// A device in exactly that state, or the first field that cannot be.
    fn restore(state: Self::State, host: Self::Host) -> Result<Self, BadState>;
}

/// A state in the layout of its own version, which can also be read from and written down to the version before it.
///
/// A released layout is frozen: a change is a new struct, a new number, and a way from and to the old struct ([`versioned!`]).
pub trait Versioned: Sized {
    /// The version of this layout.
    const VERSION: u16;
    /// The version that the release before wrote; the same when nothing has changed since.
    const PREVIOUS: u16;

    /// The body of a section in `version`. What an older version cannot say is refused rather than lost.
    fn encode(&self, version: u16) -> Result<Vec<u8>, BadState>;
    /// Reads a body of `version`.
    fn decode(version: u16, body: &[u8]) -> Result<Self, BadState>;

    /// The version that belongs to a set.
    fn version_in(set: StateSet) -> u16 {
        match set {
            StateSet::Current => Self::VERSION,
            StateSet::Previous => Self::PREVIOUS,
        }
    }
}

/// A section without its place: what a device gives to whoever collects sections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// [`Saved::KIND`].
    pub kind: &'static str,
    /// The version of the body.
    pub version: u16,
    /// The state, encoded.
    pub body: Vec<u8>,
}

/// [`Saved`] behind a pointer: saves without its types being known.
pub trait SavePiece {
    /// [`Saved::KIND`].
    fn kind(&self) -> &'static str;
    /// The state as it is now, encoded for `set`. The device is quiet.
    fn piece(&self, set: StateSet) -> Result<Piece, BadState>;
}

impl<T: Saved> SavePiece for T {
    fn kind(&self) -> &'static str {
        T::KIND
    }

    fn piece(&self, set: StateSet) -> Result<Piece, BadState> {
        let version = T::State::version_in(set);
        Ok(Piece { kind: T::KIND, version, body: self.save().encode(version)? })
    }
}

/// A saved state that no device of ours can be in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct BadState {
    /// The field.
    pub field: &'static str,
    /// What is wrong with its value.
    pub problem: String,
}

impl BadState {
    /// A refusal of `field`.
    pub fn new(field: &'static str, problem: impl Into<String>) -> Self {
        Self { field, problem: problem.into() }
    }

    /// Refuses a value with bits outside `allowed`.
    pub fn unless_within(field: &'static str, value: u64, allowed: u64) -> Result<(), Self> {
        if value & !allowed == 0 {
            return Ok(());
        }
        Err(Self::new(field, format!("{value:#x} has bits outside {allowed:#x}")))
    }

    /// A version that is not spoken.
    pub fn unknown_version(found: u16, known: u16) -> Self {
        Self::new(
            "version",
            format!("{found} is not understood, this monitor knows {known} and the one before"),
        )
    }
}

/// Encodes a layout.
pub fn to_body(state: &impl Serialize) -> Result<Vec<u8>, BadState> {
    postcard::to_stdvec(state).map_err(|e| BadState::new("body", format!("it cannot be encoded: {e}")))
}

/// Decodes a layout; every byte must belong to it.
pub fn from_body<T: DeserializeOwned>(body: &[u8]) -> Result<T, BadState> {
    let (state, rest) = postcard::take_from_bytes(body)
        .map_err(|e| BadState::new("body", format!("{} bytes are not its layout: {e}", body.len())))?;
    if !rest.is_empty() {
        return Err(BadState::new("body", format!("{} bytes follow its end", rest.len())));
    }
    Ok(state)
}

/// Makes a layout [`Versioned`]. `versioned!(RtcV1 = 1)` has no version before it; `versioned!(RtcV2 = 2, before it RtcV1 = 1)` needs
/// `From<RtcV1>` and `TryFrom<&RtcV2>`. What follows `for tests` is a version that only tests speak: it keeps the way from and to an
/// older version in use for every kind, also while there is no released one.
macro_rules! versioned {
    ($current:ident = $version:literal, for tests $older:ident = 0 {
        $($field:ident: $type:ty),* $(,)?
    } without { $($missing:ident = $default:expr),* $(,)? }) => {
        #[cfg(any(test, feature = "previous-state"))]
        #[derive(serde::Serialize, serde::Deserialize)]
        struct $older { $($field: $type),* }

        #[cfg(any(test, feature = "previous-state"))]
        impl From<$older> for $current {
            fn from(older: $older) -> Self {
                let $older { $($field),* } = older;
                Self { $($field,)* $($missing: $default),* }
            }
        }

        #[cfg(any(test, feature = "previous-state"))]
        impl TryFrom<&$current> for $older {
            type Error = $crate::devices::saved::BadState;
            fn try_from(newer: &$current) -> Result<Self, Self::Error> {
                $(if newer.$missing != $default {
                    let problem = "version 0 cannot say this value";
                    return Err(Self::Error::new(stringify!($missing), problem));
                })*
                let $current { $($field,)* .. } = newer;
                Ok(Self { $($field: $field.clone()),* })
            }
        }

        impl $crate::devices::saved::Versioned for $current {
            const VERSION: u16 = if cfg!(feature = "as-previous") { 0 } else { $version };
            const PREVIOUS: u16 = if cfg!(any(test, feature = "previous-state")) { 0 } else { $version };
            fn encode(&self, version: u16) -> Result<Vec<u8>, $crate::devices::saved::BadState> {
                match version {
                    $version if Self::VERSION == $version => $crate::devices::saved::to_body(self),
                    #[cfg(any(test, feature = "previous-state"))]
                    0 => $crate::devices::saved::to_body(&$older::try_from(self)?),
                    other => Err($crate::devices::saved::BadState::unknown_version(other, Self::VERSION)),
                }
            }
            fn decode(version: u16, body: &[u8]) -> Result<Self, $crate::devices::saved::BadState> {
                match version {
                    $version if Self::VERSION == $version => $crate::devices::saved::from_body(body),
                    #[cfg(any(test, feature = "previous-state"))]
                    0 => $crate::devices::saved::from_body::<$older>(body).map(Self::from),
                    other => Err($crate::devices::saved::BadState::unknown_version(other, Self::VERSION)),
                }
            }
        }
    };
}
pub(crate) use versioned;
