// SPDX-License-Identifier: GPL-2.0-only
/*
 * A command from parse_cdb to its completion.
 *
 * Invariants: the core judges every command, in its one order of checks, when its data has come and before anything is
 * submitted; the gate is read before submission and again before the answer; what was submitted before the lease ended and
 * ends after it is not answered GOOD.
 */
#include <linux/scatterlist.h>
#include <linux/slab.h>
#include <scsi/scsi_proto.h>
#include <scsi/scsi_common.h>

#include "hf.h"

#define HF_REPLY_LEN_USUAL 256
#define HF_REPLY_LEN_MAX (4u << 20)

/* ABORTED COMMAND, LOGICAL UNIT COMMUNICATION FAILURE: what happened is not known. */
static const u8 hf_sense_unknown[18] = { 0x70, 0, ABORTED_COMMAND, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x08, 0x00 };
/* ILLEGAL REQUEST, INVALID FIELD IN COMMAND INFORMATION UNIT: the lengths do not fit. */
static const u8 hf_sense_length[18] = { 0x70, 0, ILLEGAL_REQUEST, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x0e, 0x03 };

void hf_complete(struct se_cmd *cmd, u8 status, const u8 *sense, u8 sense_len)
{
	u8 whole[TRANSPORT_SENSE_BUFFER] = { };

	if (status == SAM_STAT_CHECK_CONDITION) {
		memcpy(whole, sense, min_t(size_t, sense_len, sizeof(whole)));
		/* LIO copies as much as this says. */
		cmd->scsi_sense_length = TRANSPORT_SENSE_BUFFER;
		transport_copy_sense_to_cmd(cmd, whole);
	}
	target_complete_cmd(cmd, status);
}

void hf_complete_data(struct se_cmd *cmd, const u8 *data, u32 len)
{
	if (cmd->data_direction != DMA_FROM_DEVICE || !cmd->data_length) {
		target_complete_cmd(cmd, SAM_STAT_GOOD);
		return;
	}
	len = min_t(u32, len, cmd->data_length);
	sg_copy_from_buffer(cmd->t_data_sg, cmd->t_data_nents, data, len);
	target_complete_cmd_with_length(cmd, SAM_STAT_GOOD, len);
}

/* Block I/O has ended; drops the image and the count that hf_execute took. Any context. */
void hf_io_done(struct se_cmd *cmd, struct hf_image *image, bool write, int error)
{
	struct hf_lu *lu = image->lu;
	u8 sense[HF_SENSE_LEN_MAX];

	if (error)
		hf_complete(cmd, SAM_STAT_CHECK_CONDITION, sense, hf_core_io_error(write, sense));
	else if (hf_gate_is_open(lu))
		target_complete_cmd(cmd, SAM_STAT_GOOD);
	else if (write)
		hf_complete(cmd, SAM_STAT_CHECK_CONDITION, hf_sense_unknown, sizeof(hf_sense_unknown));
	else
		target_complete_cmd(cmd, SAM_STAT_BUSY);
	hf_image_put(image);
	hf_io_end(lu);
}

/* Fits the transfer to what the initiator expects. False: the command was refused. */
static bool hf_fit(struct se_cmd *cmd, u64 bytes, u32 block_size, bool write)
{
	if (bytes == cmd->data_length)
		return true;
	if (bytes < cmd->data_length) {
		target_set_cmd_data_length(cmd, bytes);
		return true;
	}
	/* Less room, or less data, than the CDB asks for: a part of a write is never written. */
	if (write || cmd->data_length % block_size || !cmd->data_length) {
		hf_complete(cmd, SAM_STAT_CHECK_CONDITION, hf_sense_length, sizeof(hf_sense_length));
		return false;
	}
	cmd->se_cmd_flags |= SCF_OVERFLOW_BIT;
	cmd->residual_count = bytes - cmd->data_length;
	return true;
}

static void hf_block_io(struct hf_lu *lu, struct hf_nexus *nexus, struct se_cmd *cmd, struct hf_image *image,
			const struct hf_command *told)
{
	u32 block_size = image->facts.block_size;
	u64 bytes = (u64)told->len * block_size;
	bool write = told->answer == HF_ANSWER_WRITE;

	switch (told->answer) {
	case HF_ANSWER_READ:
		/* VERIFY reads without an initiator that takes the data: the store proves that it can. */
		if (cmd->data_direction != DMA_FROM_DEVICE) {
			hf_ask(lu, nexus, cmd);
			break;
		}
		fallthrough;
	case HF_ANSWER_WRITE:
		if (!hf_fit(cmd, bytes, block_size, write))
			break;
		hf_store_rw(lu, cmd, image, told->lba, cmd->data_length / block_size, write,
			    told->flags & HF_WRITE_DURABLE);
		return;
	case HF_ANSWER_FLUSH:
		hf_store_flush(lu, cmd, image);
		return;
	default:
		hf_store_zeroes(lu, cmd, image, told->lba, told->len);
		return;
	}
	hf_image_put(image);
	hf_io_end(lu);
}

static u32 hf_judge(struct hf_nexus *nexus, struct hf_image *image, struct hf_command *told)
{
	unsigned long flags;

	spin_lock_irqsave(&nexus->lock, flags);
	told->relation = hf_nexus_relation(nexus, image);
	told->nexus = nexus->core;
	told->attentions = nexus->attentions;
	hf_core_execute(image->memory, image->facts.registrants, told);
	spin_unlock_irqrestore(&nexus->lock, flags);
	return told->answer;
}

static sense_reason_t hf_execute(struct se_cmd *cmd)
{
	struct hf_lu *lu = hf_lu_of(cmd->se_dev);
	struct hf_command told = { .cdb = cmd->t_task_cdb, .cdb_len = scsi_command_size(cmd->t_task_cdb) };
	u8 usual[HF_REPLY_LEN_USUAL] = { }, *more = NULL;
	struct hf_nexus *nexus = NULL;
	struct hf_image *image = NULL;

	hf_io_begin(lu);
	if (hf_gate_is_open(lu))
		image = hf_image_get(lu);
	if (image)
		nexus = hf_nexus_of(lu, cmd);
	if (!nexus) {
		/* No lease, not the owner, no image, or a port that the cluster has not numbered: nothing happened. */
		target_complete_cmd(cmd, SAM_STAT_BUSY);
		goto out;
	}
	told.out = usual;
	told.out_len = sizeof(usual);
	if (hf_judge(nexus, image, &told) == HF_ANSWER_MORE_ROOM) {
		told.out_len = min_t(u32, told.len, HF_REPLY_LEN_MAX);
		more = kvzalloc(told.out_len, GFP_NOIO);
		told.out = more;
		if (!more || hf_judge(nexus, image, &told) == HF_ANSWER_MORE_ROOM) {
			target_complete_cmd(cmd, SAM_STAT_BUSY);
			goto out;
		}
	}
	switch (told.answer) {
	case HF_ANSWER_STATUS:
		hf_complete(cmd, told.status, told.sense, told.sense_len);
		break;
	case HF_ANSWER_DATA:
		hf_complete_data(cmd, told.out, told.len);
		break;
	case HF_ANSWER_ASK:
		hf_ask(lu, nexus, cmd);
		break;
	default:
		hf_block_io(lu, nexus, cmd, image, &told);
		return 0;
	}
out:
	kvfree(more);
	if (image)
		hf_image_put(image);
	hf_io_end(lu);
	return 0;
}

/* LIO answers REPORT LUNS, from maps that are pushed to every node alike; 3F/0E ends with it. */
static sense_reason_t hf_report_luns(struct se_cmd *cmd)
{
	struct hf_nexus *nexus = hf_nexus_of(hf_lu_of(cmd->se_dev), cmd);
	unsigned long flags;

	if (nexus) {
		spin_lock_irqsave(&nexus->lock, flags);
		hf_core_ua_luns_reported(nexus->attentions);
		spin_unlock_irqrestore(&nexus->lock, flags);
	}
	return spc_emulate_report_luns(cmd);
}

sense_reason_t hf_parse_cdb(struct se_cmd *cmd)
{
	cmd->execute_cmd = hf_execute;
	switch (cmd->t_task_cdb[0]) {
	case READ_6:
	case READ_10:
	case READ_12:
	case READ_16:
	case WRITE_6:
	case WRITE_10:
	case WRITE_12:
	case WRITE_16:
		/* All of the buffer is written before it is sent: LIO need not clear it. */
		cmd->se_cmd_flags |= SCF_SCSI_DATA_CDB;
		break;
	case REPORT_LUNS:
		cmd->execute_cmd = hf_report_luns;
		break;
	}
	return 0;
}

/* Process context. LIO waits for the commands that it aborts: those that are asked for end now. */
void hf_tmr_notify(struct se_device *dev, enum tcm_tmreq_table kind, struct list_head *aborted)
{
	hf_ask_aborted(aborted);
}
