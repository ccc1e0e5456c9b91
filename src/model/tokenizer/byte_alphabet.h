// SPDX-License-Identifier: Apache-2.0
// The printable stand-ins of byte-level BPE: every byte has one character. Printable Latin-1 bytes stand for
// themselves, the other 68, in order, for U+0100 and up. Used by the ByteLevel parts.
#pragma once

#include <array>
#include <cstdint>

namespace quadrille::tokenizer {

inline constexpr int kByteAlphabetEnd = 256 + 68;

constexpr bool stands_for_itself(int byte) {
  return (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
}

constexpr std::array<uint16_t, 256> make_byte_to_character() {
  std::array<uint16_t, 256> table{};
  uint16_t next = 256;
  for (int byte = 0; byte < 256; ++byte)
    table[static_cast<size_t>(byte)] = stands_for_itself(byte) ? static_cast<uint16_t>(byte) : next++;
  return table;
}

constexpr std::array<int16_t, kByteAlphabetEnd> make_character_to_byte() {
  std::array<int16_t, kByteAlphabetEnd> table{};
  for (int16_t& entry : table) entry = -1;
  const auto forward = make_byte_to_character();
  for (int byte = 0; byte < 256; ++byte) table[forward[static_cast<size_t>(byte)]] = static_cast<int16_t>(byte);
  return table;
}

inline constexpr std::array<uint16_t, 256> kByteToCharacter = make_byte_to_character();
// -1 where no byte has this character.
inline constexpr std::array<int16_t, kByteAlphabetEnd> kCharacterToByte = make_character_to_byte();

}  // namespace quadrille::tokenizer
