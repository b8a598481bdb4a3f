//! One entry of a CPUID table, as KVM takes and gives it.

/// A register that CPUID answers in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Register {
    /// EAX.
    Eax,
    /// EBX.
    Ebx,
    /// ECX.
    Ecx,
    /// EDX.
    Edx,
}

/// What CPUID answers for one value of EAX, and of ECX where that counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Leaf {
    /// EAX on entry.
    pub function: u32,
    /// ECX on entry.
    pub index: u32,
    /// Whether ECX on entry counts (KVM_CPUID_FLAG_SIGNIFCANT_INDEX).
    pub indexed: bool,
    /// The answer in EAX.
    pub eax: u32,
    /// The answer in EBX.
    pub ebx: u32,
    /// The answer in ECX.
    pub ecx: u32,
    /// The answer in EDX.
    pub edx: u32,
}

impl Leaf {
    /// A leaf for which ECX on entry does not count; the answer is EAX, EBX, ECX, EDX.
    pub fn plain(function: u32, [eax, ebx, ecx, edx]: [u32; 4]) -> Self {
        Self { function, index: 0, indexed: false, eax, ebx, ecx, edx }
    }

    /// A leaf for which ECX on entry counts.
    pub fn indexed(function: u32, index: u32, [eax, ebx, ecx, edx]: [u32; 4]) -> Self {
        Self { function, index, indexed: true, eax, ebx, ecx, edx }
    }

    /// One of the answer's registers.
    pub fn get(&self, register: Register) -> u32 {
        match register {
            Register::Eax => self.eax,
            Register::Ebx => self.ebx,
            Register::Ecx => self.ecx,
            Register::Edx => self.edx,
        }
    }

    pub(crate) fn get_mut(&mut self, register: Register) -> &mut u32 {
        match register {
            Register::Eax => &mut self.eax,
            Register::Ebx => &mut self.ebx,
            Register::Ecx => &mut self.ecx,
            Register::Edx => &mut self.edx,
        }
    }
}

/// The entry of a table for a leaf; all zero when there is none, as a processor answers.
pub(crate) fn of(table: &[Leaf], function: u32, index: u32) -> Leaf {
    let found = table.iter().find(|l| l.function == function && (l.index == index || !l.indexed));
    found.copied().unwrap_or(Leaf::indexed(function, index, [0; 4]))
}
