//! What the tests of this crate are made of: DER by hand.

/// DER by hand, with every fault that a test wants.
pub(crate) mod der {
    /// 1.3.6.1.4.1.2312.19.1
    pub(crate) const RECEPTOR_OID: &[u8] = &[0x2b, 6, 1, 4, 1, 0x92, 0x08, 19, 1];

    pub(crate) fn tagged(tag: u8, content: &[u8]) -> Vec<u8> {
        let mut bytes = vec![tag];
        match u8::try_from(content.len()) {
            Ok(short @ 0..128) => bytes.push(short),
            Ok(long) => bytes.extend([0x81, long]),
            Err(_) => {
                bytes.push(0x82);
                bytes.extend(u16::try_from(content.len()).unwrap().to_be_bytes());
            }
        }
        bytes.extend_from_slice(content);
        bytes
    }

    pub(crate) fn utf8(text: &[u8]) -> Vec<u8> {
        tagged(0x0c, text)
    }

    pub(crate) fn uri(text: &str) -> Vec<u8> {
        tagged(0x86, text.as_bytes())
    }

    pub(crate) fn other(oid: &[u8], value: &[u8]) -> Vec<u8> {
        let content = [tagged(0x06, oid), tagged(0xa0, value)].concat();
        tagged(0xa0, &content)
    }

    pub(crate) fn general_names(names: &[Vec<u8>]) -> Vec<u8> {
        tagged(0x30, &names.concat())
    }
}
